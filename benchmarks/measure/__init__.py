"""What is measured and how. It runs beside any commit of imgstore, so it imports nothing from inside `imgstore`."""
