"""Where rows are read from: files, text, SQL, joins and filters."""
