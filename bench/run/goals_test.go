//go:build linux

package main

import (
	"bytes"
	"strings"
	"testing"
)

// Goal: the table of goals judges what was measured, and says of everything else how it is measured. Method: runs made up, one row of each kind.
func TestGoalsAreJudged(t *testing.T) {
	one := func(wall, cpu float64, grown int64) []cost {
		return []cost{{Wall: wall, CPU: cpu, Grown: grown}, {Wall: wall / 2, CPU: cpu / 2, Grown: grown / 2}, {Wall: wall * 9, CPU: cpu * 9, Grown: grown * 9}}
	}
	m := measures{others: map[string]float64{"fixed-4M bytes": 1000}, results: results{
		"kopia":      {"full": one(10, 10, 100), "day2": one(10, 10, 100)},
		"restic-new": {"full": one(20, 20, 100), "again": one(10, 10, 0), "day2": one(10, 10, 100), "sibling": one(10, 10, 100), "restore": one(10, 10, 0)},
		"holdfast": {"full": one(3.5, 3.6, 110), "again": one(2.5, 1, 0), "day2": one(1, 1, 100), "sibling": one(1, 1, 60), "restore": one(4, 6.5, 0),
			"nothing": one(0.2, 1, 65<<10), "scrub": one(10, 1, 0), "rawread": one(8.5, 1, 0), "recompress": one(9, 9, -30), "ordinary": one(1, 1, 250)},
	}}
	out := `BenchmarkGrowth/10000-2  1  1 ns/op  99.0 B/chunk  5 marked/s
BenchmarkGrowth/10000000-2  1  1 ns/op  24.0 B/chunk  20000000 marked/s
BenchmarkHundredDays-2  1  1 ns/op  0.48 copied/freed  0.84 last/first
`
	if err := noteBenchmarks(out, m.others); err != nil {
		t.Fatal(err)
	}
	if err := noteReread("BenchmarkKnownData-2  1  1 ns/op  900 MB/s\nBenchmarkPipelineKnown-2  1  1 ns/op  1000 MB/s\n", m.others); err != nil {
		t.Fatal(err)
	}
	if err := noteLine("    line_test.go:46: 160 MiB sent in 7s: 82 % of the line (with set-up and commit)", m.others); err != nil {
		t.Fatal(err)
	}
	for _, broken := range []func(string, map[string]float64) error{noteBenchmarks, noteReread, noteLine} {
		if broken("nothing of use", map[string]float64{}) == nil {
			t.Error("output without figures was accepted")
		}
	}
	var b bytes.Buffer
	printGoals(&b, m)
	for _, want := range []string{
		"≤ 0.40 × kopia | 0.3 | 0.35 | met |",
		"≤ 0.28 × restic |  | 0.175 | met |",
		"in mode fast, wall | ≤ 0.25 × kopia | 0.18 |  | not measured here: its peer or step was not in the run |",
		"CPU | ≤ 0.42 × kopia | 0.36 | 0.36 | met, and the stretch |",
		"re-read of unchanged A, wall | ≤ 0.20 × restic | 0.14 | 0.25 | **missed** |",
		"≤ 0.3 s | 0.1 s | 0.2 s | met |",
		"≤ 64 KiB |  | 65 KiB | **missed** |",
		"0.2 | 0.25 | met |",
		"repository after A, A', B | ≤ 0.97 × restic |  | 0.9 | met |",
		"the same, recompressed | ≤ 0.88 × restic | 0.85 | 0.8 | met, and the stretch |",
		"0.95 | 0.84 | **missed** |",
		"≤ 320 MB | 160 MB | 366 MB | **missed** |",
		"marking 10 M chunks | ≤ 1 s |  | 0.5 s | met |",
		"≥ 0.8 × raw disk read | 0.95 | 0.85 | met |",
		"≥ 0.9 × the local re-read |  | 0.9 | met |",
		"95 % | 82 % | **missed** |",
		"not measured.",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
