"""WHAT WE CHOOSE: Deployment > Site > Pool > Replica, one frozen tree and the only configuration."""
