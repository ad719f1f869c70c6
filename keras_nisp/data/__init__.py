"""Samples: collected from what users have, drawn at random, and in which range they are."""
