"""What each group is worth: criteria and priors measured on the model, then scores made from them."""
