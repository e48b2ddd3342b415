"""Where a detector looks: the patches that DePatch predicts, and those that an object rests on."""
