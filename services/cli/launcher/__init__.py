"""The launcher of a whole mesh on one machine: keys, data, models, servers, the five services."""
