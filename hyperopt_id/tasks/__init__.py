"""What is trained: data sets that live on the device, models, and the pure `Task` made of the two."""
