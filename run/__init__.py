"""A run and everything that carries it from settings to a finished folder; it joins the stages and knows no options."""
