"""The channels of any network: how it is traced, what operations do to channels, groups, and which are live."""
