package main

import "time"

func shownAt(sec int) time.Time { return time.Unix(1_800_000_000+int64(sec), 0) }
