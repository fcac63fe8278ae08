//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// report prints the medians of every tool and step, and what Holdfast's are as ratios to each peer's.
func report(w io.Writer, names []string, all results, images string) {
	for _, n := range []string{"a", "a2", "a3", "b"} {
		if info, err := os.Stat(filepath.Join(images, n+".raw")); err == nil {
			fmt.Fprintf(w, "%s.raw: %d MiB virtual, %d MiB allocated\n", n, info.Size()>>20, blocks(info)>>20)
		}
	}
	fmt.Fprintln(w, "\nwall s / CPU s / peak RSS MiB / repository growth MiB; medians; every restore verified by SHA-256")
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprint(tw, "tool")
	for _, s := range steps {
		fmt.Fprintf(tw, "\t%s", s)
	}
	fmt.Fprintln(tw)
	for _, n := range names {
		if all[n] == nil {
			continue
		}
		fmt.Fprint(tw, n)
		for _, s := range steps {
			cs := all[n][s]
			if len(cs) == 0 {
				fmt.Fprint(tw, "\t-")
				continue
			}
			fmt.Fprintf(tw, "\t%.1f / %.1f / %d / %d", median(cs, func(c cost) float64 { return c.Wall }), median(cs, func(c cost) float64 { return c.CPU }),
				median(cs, func(c cost) int64 { return c.RSS })>>20, median(cs, func(c cost) int64 { return c.Grown })>>20)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	reportRequests(w, names, all)
	hf := all["holdfast"]
	if hf == nil {
		return
	}
	fmt.Fprintln(w, "\nHoldfast as a ratio to the peer: wall / CPU / growth (below 1 is better); tracked is compared with the peer's day2")
	tw = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprint(tw, "peer")
	for _, s := range steps {
		fmt.Fprintf(tw, "\t%s", s)
	}
	fmt.Fprintln(tw)
	for _, n := range names {
		if n == "holdfast" || all[n] == nil {
			continue
		}
		fmt.Fprint(tw, n)
		for _, s := range steps {
			peer := all[n][s]
			if s == "tracked" {
				peer = all[n]["day2"]
			}
			if len(peer) == 0 || len(hf[s]) == 0 {
				fmt.Fprint(tw, "\t-")
				continue
			}
			ratio := func(f func(cost) float64) string {
				if of := median(peer, f); of > 0 {
					return fmt.Sprintf("%.2f", median(hf[s], f)/of)
				}
				return "-"
			}
			fmt.Fprintf(tw, "\t%s / %s / %s", ratio(wall), ratio(cpu), ratio(grown))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// reportRequests prints what the S3 server counted, and what that is a GiB of growth; for restores a GiB of everything stored until then.
func reportRequests(w io.Writer, names []string, results map[string]map[string][]cost) {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	head := false
	for _, n := range names {
		total := int64(0)
		for _, cs := range results[n] {
			for _, c := range cs {
				total += c.Requests
			}
		}
		if total == 0 {
			continue
		}
		if !head {
			fmt.Fprintln(w, "\nrequests to the S3 server / a GiB that grew; restore: a GiB stored by then")
			fmt.Fprint(tw, "tool")
			for _, s := range steps {
				fmt.Fprintf(tw, "\t%s", s)
			}
			fmt.Fprintln(tw)
			head = true
		}
		fmt.Fprint(tw, n)
		stored := int64(0)
		for _, s := range steps {
			cs := results[n][s]
			if len(cs) == 0 {
				fmt.Fprint(tw, "\t-")
				continue
			}
			grown, sent := median(cs, func(c cost) int64 { return c.Grown }), median(cs, func(c cost) int64 { return c.Requests })
			if stored += grown; s == "restore" {
				grown = stored
			}
			if grown < 1<<20 {
				fmt.Fprintf(tw, "\t%d / -", sent)
				continue
			}
			fmt.Fprintf(tw, "\t%d / %.0f", sent, float64(sent)/float64(grown)*(1<<30))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}
