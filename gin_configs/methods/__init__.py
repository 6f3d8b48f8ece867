"""The stages of all methods of the paper; a recipe names them by STAGES and says the rest."""
