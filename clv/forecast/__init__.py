"""From a trained model to a calibrated forecast: what a bundle needs to predict."""
