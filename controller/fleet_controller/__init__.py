"""The controller: decides what runs where, and shows it."""
