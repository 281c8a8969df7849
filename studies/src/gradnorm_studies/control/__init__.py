"""One DQN agent on several environments of gymnasium."""
