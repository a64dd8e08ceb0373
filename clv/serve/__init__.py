"""The HTTP address of a bundle: routes and store know no Ray; `deployments` and `app` put them on Ray Serve."""
