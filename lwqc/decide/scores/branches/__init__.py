"""How much each residual branch matters."""
