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
	part("reclaimable", s.Reclaimable, "of points in time that expired or were deleted: needed by nobody")
	part("records", s.Records, "")
	printWaits(p, s)
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
	p.line("Deleting all points in time of a VM gives back what is only its own. A collect copies together what lives in containers of which little is needed.")
}

// printWaits says what pins bytes, and when what nobody needs comes back.
func printWaits(p *printer, s api.PoolSpace) {
	if len(s.PinnedBy) > 0 {
		p.line("")
		p.row("PINNED BY", "SET", "VM")
		for _, pin := range s.PinnedBy {
			p.row(pinUses[string(pin.Use)], pin.Set, pin.VM)
		}
	}
	if len(s.Waits) > 0 {
		p.line("")
		p.row("RECLAIMABLE", "WHEN")
		for _, w := range s.Waits {
			when := waits[string(w.When)]
			if !w.Until.IsZero() {
				when += ", the last on " + w.Until.UTC().Format("2006-01-02 15:04 MST")
			}
			p.row(cli.Size(w.Bytes), when)
		}
	}
}

var pinUses = map[string]string{
	"reading": "a deleted point in time that is being read or built upon",
	"writing": "a backup under way",
}

var waits = map[string]string{
	"next-collect":      "with the next 'holdfast pool gc'",
	"collect-after":     "with the second 'holdfast pool gc' from now, which must find it needless again",
	"container-sparser": "with a 'holdfast pool gc' once less is needed of the containers it lies in",
	"pin-ends":          "with a 'holdfast pool gc' once its container is not pinned any more",
	"lock-ends":         "with a 'holdfast pool gc' once Object Lock lets its containers go",
}

func percent(n, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}
