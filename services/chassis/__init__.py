"""How any service runs. Imports no service and knows no business word."""
