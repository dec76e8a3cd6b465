"""Tables of ratios that the documents hold."""
