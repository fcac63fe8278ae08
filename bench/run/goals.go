//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"
)

// A results holds the runs by tool and step.
type results map[string]map[string][]cost

// A goal is one row of the table of goals.
type goal struct {
	metric  string
	aim     string  // as a sentence
	bound   float64 // what measured must not exceed, or must reach
	stretch float64 // the further aim; 0: none
	least   bool    // the bound is to be reached, not kept below
	unit    string  // behind figures; "" for ratios

	measured func(m measures) (float64, bool)
	command  string // what measures the row where the run does not
}

// measures is what goals are computed of.
type measures struct {
	results
	others map[string]float64 // figures of other commands, by name
}

// restics are the names under which restic's newest version may be in the run, the best first.
var restics = []string{"restic-new", "restic"}

func (r results) peer(names ...string) map[string][]cost {
	for _, n := range names {
		if r[n] != nil {
			return r[n]
		}
	}
	return nil
}

func wall(c cost) float64  { return c.Wall }
func cpu(c cost) float64   { return c.CPU }
func grown(c cost) float64 { return float64(c.Grown) }

// of returns the median of a step.
func of(steps map[string][]cost, step string, f func(cost) float64) (float64, bool) {
	if len(steps[step]) == 0 {
		return 0, false
	}
	return median(steps[step], f), true
}

// over is the ratio of a step of one tool to a step of another.
func over(a map[string][]cost, sa string, b map[string][]cost, sb string, f func(cost) float64) (float64, bool) {
	x, ok := of(a, sa, f)
	y, ok2 := of(b, sb, f)
	if !ok || !ok2 || y <= 0 {
		return 0, false
	}
	return x / y, true
}

// total is the repository after A, A', B, and after recompression if that is asked for.
func total(steps map[string][]cost, recompressed bool) (float64, bool) {
	sum := 0.0
	list := []string{"full", "again", "day2", "sibling"}
	if recompressed {
		list = append(list, "recompress")
	}
	for _, s := range list {
		g, ok := of(steps, s, grown)
		if !ok {
			return 0, false
		}
		sum += g
	}
	return sum, true
}

func totals(a, b map[string][]cost, recompressed bool) (float64, bool) {
	x, ok := total(a, recompressed)
	y, ok2 := total(b, false)
	if !ok || !ok2 || y <= 0 {
		return 0, false
	}
	return x / y, true
}

// against makes a row's figure of two tools' steps.
func against(tool, step string, peers []string, peerStep string, f func(cost) float64) func(measures) (float64, bool) {
	return func(m measures) (float64, bool) { return over(m.results[tool], step, m.peer(peers...), peerStep, f) }
}

func figure(name string) func(measures) (float64, bool) {
	return func(m measures) (float64, bool) {
		x, ok := m.others[name]
		return x, ok
	}
}

func own(step string, f func(cost) float64) func(measures) (float64, bool) {
	return func(m measures) (float64, bool) { return of(m.results["holdfast"], step, f) }
}

const (
	growth   = "bench/growth"
	lineTest = "go test ./cmd/e2e -run TestLongLine -v"
	reread   = "go test ./agent -run '^$' -bench 'KnownData|PipelineKnown'"
)

// perTB turns bytes a chunk into MB for each TB of unique data at a mean of 64 KiB.
const perTB = 1e12 / 65536 / 1e6

var kopia, restic = []string{"kopia"}, restics

// goals is the table of goals, in its order.
var goals = []goal{
	{metric: "full backup of A, wall", aim: "≤ 0.40 × kopia", bound: 0.40, stretch: 0.30, measured: against("holdfast", "full", kopia, "full", wall)},
	{metric: "full backup of A, wall", aim: "≤ 0.28 × restic", bound: 0.28, measured: against("holdfast", "full", restic, "full", wall)},
	{metric: "full backup of A in mode fast, wall", aim: "≤ 0.25 × kopia", bound: 0.25, stretch: 0.18, measured: against("holdfast+fast", "full", kopia, "full", wall)},
	{metric: "full backup of A, CPU", aim: "≤ 0.42 × kopia", bound: 0.42, stretch: 0.36, measured: against("holdfast", "full", kopia, "full", cpu)},
	{metric: "re-read of unchanged A, wall", aim: "≤ 0.20 × restic", bound: 0.20, stretch: 0.14, measured: against("holdfast", "again", restic, "again", wall)},
	{metric: "change tracking, nothing changed, wall", aim: "≤ 0.3 s", bound: 0.3, stretch: 0.1, unit: "s", measured: own("nothing", wall)},
	{metric: "change tracking, nothing changed, written", aim: "≤ 64 KiB", bound: 64, unit: "KiB", measured: own("nothing", func(c cost) float64 { return float64(c.Grown) / 1024 })},
	{metric: "ordinary day, bytes stored", aim: "≤ 0.27 × fixed 4 MiB blocks", bound: 0.27, stretch: 0.20, measured: ordinaryDay},
	{metric: "patch day by change tracking, wall", aim: "≤ 0.30 × kopia's scan", bound: 0.30, stretch: 0.25, measured: against("holdfast", "tracked", kopia, "day2", wall)},
	{metric: "sibling B, bytes added", aim: "≤ 0.75 × restic", bound: 0.75, stretch: 0.60, measured: against("holdfast", "sibling", restic, "sibling", grown)},
	{metric: "repository after A, A', B", aim: "≤ 0.97 × restic", bound: 0.97, measured: func(m measures) (float64, bool) {
		return totals(m.results["holdfast"], m.peer(restics...), false)
	}},
	{metric: "the same, recompressed", aim: "≤ 0.88 × restic", bound: 0.88, stretch: 0.85, measured: func(m measures) (float64, bool) {
		return totals(m.results["holdfast"], m.peer(restics...), true)
	}},
	{metric: "the same, recompressed from mode fast", aim: "≤ 0.88 × restic", bound: 0.88, stretch: 0.85, measured: func(m measures) (float64, bool) {
		return totals(m.results["holdfast+fast"], m.peer(restics...), true)
	}},
	{metric: "full restore of A', wall", aim: "≤ 0.60 × restic", bound: 0.60, stretch: 0.45, measured: against("holdfast", "restore", restic, "restore", wall)},
	{metric: "full restore of A', CPU", aim: "≤ 0.70 × restic", bound: 0.70, stretch: 0.60, measured: against("holdfast", "restore", restic, "restore", cpu)},
	{metric: "restore after 100 increments", aim: "≥ 0.85 of the first day's speed", bound: 0.85, stretch: 0.95, least: true, measured: figure("last/first"), command: growth},
	{metric: "peak memory of a backup, daemon and agent", aim: "≤ 128 MiB + 24 B a chunk", bound: 128, stretch: 96, unit: "MiB", measured: peak},
	{metric: "index memory per TB unique at 64 KiB", aim: "≤ 320 MB", bound: 320, stretch: 160, unit: "MB", measured: func(m measures) (float64, bool) {
		x, ok := m.others["B/chunk"]
		return x * perTB, ok
	}, command: growth},
	{metric: "collect: bytes copied per byte freed", aim: "≤ 0.5", bound: 0.5, stretch: 0.35, measured: figure("copied/freed"), command: growth},
	{metric: "collect: marking 10 M chunks", aim: "≤ 1 s", bound: 1, unit: "s", measured: func(m measures) (float64, bool) {
		x, ok := m.others["marked/s"]
		return 1e7 / max(x, 1), ok
	}, command: growth},
	{metric: "scrub of stored bytes, speed", aim: "≥ 0.8 × raw disk read", bound: 0.8, stretch: 0.95, least: true, measured: func(m measures) (float64, bool) {
		return over(m.results["holdfast"], "rawread", m.results["holdfast"], "scrub", wall)
	}},
	{metric: "agent → daemon over TLS, all duplicate, speed", aim: "≥ 0.9 × the local re-read", bound: 0.9, least: true, measured: figure("tls/local"), command: reread},
	{metric: "agent → daemon over TLS, 150 ms, 200 Mbit/s", aim: "≥ 85 % of the link", bound: 85, stretch: 95, least: true, unit: "%", measured: figure("% of the line"), command: lineTest},
}

// ordinaryDay is what the third day stored by what the same would have with fixed blocks of 4 MiB.
func ordinaryDay(m measures) (float64, bool) {
	x, ok := of(m.results["holdfast"], "ordinary", grown)
	y, ok2 := m.others["fixed-4M bytes"]
	if !ok || !ok2 || y <= 0 {
		return 0, false
	}
	return x / y, true
}

// peak is the largest memory of daemon and agent in a backup, in MiB, less what is allowed for the pool's chunks.
func peak(m measures) (float64, bool) {
	top, there := 0.0, false
	for _, s := range []string{"full", "again", "day2", "sibling"} {
		x, ok := of(m.results["holdfast"], s, func(c cost) float64 { return float64(c.House-24*c.Chunks) / (1 << 20) })
		top, there = max(top, x), there || ok
	}
	return top, there
}

// printGoals prints the table of goals as Markdown. What was not measured names the command that does.
func printGoals(w io.Writer, m measures) {
	fmt.Fprintln(w, "\n| metric | goal | stretch | measured | |\n|---|---|---|---|---|")
	met, missed, open := 0, 0, 0
	for _, g := range goals {
		x, ok := g.measured(m)
		show := func(x float64) string { return strings.TrimSpace(fmt.Sprintf("%.3g %s", x, g.unit)) }
		stretch := ""
		if g.stretch != 0 {
			stretch = show(g.stretch)
		}
		within := func(bound float64) bool { return x <= bound && !g.least || x >= bound && g.least }
		got, verdict := "", ""
		switch {
		case !ok && g.command != "":
			verdict = "not measured here: `" + g.command + "`"
			open++
		case !ok:
			verdict = "not measured here: its peer or step was not in the run"
			open++
		case g.stretch != 0 && within(g.stretch):
			got, verdict = show(x), "met, and the stretch"
			met++
		case within(g.bound):
			got, verdict = show(x), "met"
			met++
		default:
			got, verdict = show(x), "**missed**"
			missed++
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", g.metric, g.aim, stretch, got, verdict)
	}
	fmt.Fprintf(w, "\n%d met, %d missed, %d not measured.\n", met, missed, open)
}
