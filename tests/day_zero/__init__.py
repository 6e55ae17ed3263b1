"""How far a draft of ``layersync new-adapter`` comes for classes that no adapter covers, on the day they appear."""
