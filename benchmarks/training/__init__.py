"""What training costs: a step by different trainers, what a search adds to it, and whole searches."""
