"""What each training is made of: every file returns a ConfigDict, as a difference to base.py."""
