"""The training side's Ray: sessions, intake, features, embedding, training, scoring."""
