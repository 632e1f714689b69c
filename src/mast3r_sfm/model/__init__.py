"""The two-view model: its configuration, where its weights come from, and the network itself."""
