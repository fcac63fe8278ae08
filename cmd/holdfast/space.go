package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) poolSpace() *cobra.Command {
	var explain bool
	cmd := &cobra.Command{Use: "space NAME", Short: "Say where a pool's bytes are", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var s api.PoolSpace
		if err := a.call(c.Context(), "GET", "/v1/pools/"+url.PathEscape(args[0])+"/space", nil, &s); err != nil {
			return err
		}
		return a.print(s, func(p *printer) { printSpace(p, s, explain) })
	}}
	cmd.Flags().BoolVar(&explain, "explain", false, "show how full containers are and how scattered the newest points in time lie, too")
	return cmd
}

func printSpace(p *printer, s api.PoolSpace, explain bool) {
	part := func(name string, n int64, what string) {
		p.row(name, cli.Size(n), fmt.Sprintf("%.0f %%", percent(n, s.Stored)), what)
	}
	p.row("stored", cli.Size(s.Stored), "", fmt.Sprintf("in %d containers", s.Containers))
	part("live", s.Live, "needed by points in time")
	part("pinned", s.Pinned, "of deleted points in time that are still being read, and of backups under way")
	part("reclaimable", s.Reclaimable, "needed by nobody: 'holdfast pool gc' gives it back, what lies in well filled containers later")
	part("records", s.Records, "")
	p.line("")
	p.row("VM", "POINTS", "LOGICAL", "ONLY ITS OWN")
	for _, v := range s.VMs {
		p.row(v.Name, v.Sets, cli.Size(v.Logical), cli.Size(v.Unique))
	}
	if !explain {
		return
	}
	p.line("")
	p.row("LIVE", "CONTAINERS")
	for i, n := range s.Liveness {
		p.row(fmt.Sprintf("%d-%d %%", i*10, i*10+10), n)
	}
	p.line("")
	p.line("Fragmentation: %.1f %% of the pieces of each VM's newest point in time do not follow the piece before.", s.Jumps*100)
	p.line("Deleting all points in time of a VM gives back what is only its own. A collect copies together what lives in containers below 60 %%.")
}

func percent(n, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}
