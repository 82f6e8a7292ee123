"""Papers as experiments: one file each, holding what it claims and how Sonde finds out. `frame` says how."""
