//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// others runs the commands that measure what the run itself does not, and notes their figures by name.
func others(chunks string, into map[string]float64) error {
	for _, c := range []struct {
		what string
		args []string
		note func(out string, into map[string]float64) error
	}{
		{growth, []string{"bench/growth", chunks}, noteBenchmarks},
		{reread, []string{"go", "test", "./agent", "-run", "^$", "-bench", "KnownData|PipelineKnown", "-count", "3"}, noteReread},
		{lineTest, []string{"go", "test", "./cmd/e2e", "-run", "TestLongLine", "-v", "-count", "1"}, noteLine},
	} {
		fmt.Fprintln(os.Stderr, c.what)
		cmd := exec.Command(c.args[0], c.args[1:]...)
		cmd.Env = append(os.Environ(), "HOLDFAST_SOAK=4") // the line's test sends 640 MiB then
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", c.what, err, out)
		}
		fmt.Printf("\n%s\n%s", c.what, figures(string(out)))
		if err := c.note(string(out), into); err != nil {
			return fmt.Errorf("%s: %w\n%s", c.what, err, out)
		}
	}
	fmt.Println()
	return nil
}

// figures keeps the lines of a test's output that have any.
func figures(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "Benchmark") || strings.Contains(line, "of the line") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// values returns the figures of a benchmark's line by unit.
func values(line string) map[string]float64 {
	f := strings.Fields(line)
	out := map[string]float64{}
	for i := 2; i+1 < len(f); i += 2 {
		if v, err := strconv.ParseFloat(f[i], 64); err == nil {
			out[f[i+1]] = v
		}
	}
	return out
}

// noteBenchmarks notes the figures of bench/growth. Of several sizes the last, largest one counts.
func noteBenchmarks(out string, into map[string]float64) error {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "BenchmarkGrowth/") || strings.HasPrefix(line, "BenchmarkHundredDays") {
			for unit, v := range values(line) {
				into[unit] = v
			}
		}
	}
	for _, want := range []string{"B/chunk", "marked/s", "copied/freed", "last/first"} {
		if _, ok := into[want]; !ok {
			return fmt.Errorf("it printed no %s", want)
		}
	}
	return nil
}

// noteReread notes the speed of a re-read over TLS by that of the pipeline alone, medians.
func noteReread(out string, into map[string]float64) error {
	rates := map[string][]cost{}
	for line := range strings.Lines(out) {
		for _, name := range []string{"BenchmarkKnownData", "BenchmarkPipelineKnown"} {
			if v, ok := values(line)["MB/s"]; ok && strings.HasPrefix(line, name) {
				rates[name] = append(rates[name], cost{Wall: v})
			}
		}
	}
	ratio, ok := over(rates, "BenchmarkKnownData", rates, "BenchmarkPipelineKnown", wall)
	if !ok {
		return fmt.Errorf("it printed no rates")
	}
	into["tls/local"] = ratio
	return nil
}

var ofTheLine = regexp.MustCompile(`(\d+) % of the line`)

func noteLine(out string, into map[string]float64) error {
	m := ofTheLine.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("it did not say how much of the line was used")
	}
	v, err := strconv.ParseFloat(m[1], 64)
	into["% of the line"] = v
	return err
}
