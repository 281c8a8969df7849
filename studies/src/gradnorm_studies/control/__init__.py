"""One agent, a DQN or an actor-critic, on several games of gymnasium."""
