"""`python -m training.report`: what runs did, as one page that needs nothing else, or as pictures."""
