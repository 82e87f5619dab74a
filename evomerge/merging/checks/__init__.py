"""What stands between opened sources: their form, what they compute, how alike they are, and their licences."""
