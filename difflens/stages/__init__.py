"""The stages of a study, one file each: what decides a stage's result, how it is made, and how it is read again."""
