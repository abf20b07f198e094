"""Next item: which item a user takes next, from the items before it."""
