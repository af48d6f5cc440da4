"""Behind the training screen: following runs, the curves of what they measured, and what is said about them."""
