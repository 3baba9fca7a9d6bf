"""The demo: five points about a real mesh, each shown with its evidence and checked."""
