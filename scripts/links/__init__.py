"""Several hosts on one machine, joined by links of a chosen rate, and what trains between them."""
