package main

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) poolCmd() *cobra.Command {
	return cli.Group("pool", "Storage pools", a.poolCreate(), a.poolImport(), a.poolList(), a.poolShow(), a.poolSet(), a.poolCheck(), a.poolVerify(), a.poolScrub(), a.poolGC(), a.poolSpace(), a.poolRecompress(), a.poolKey(), a.poolDelete())
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List pools", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var ps []api.Pool
		if err := a.call(c.Context(), "GET", "/v1/pools", nil, &ps); err != nil {
			return err
		}
		return a.print(ps, func(p *printer) {
			if len(ps) == 0 {
				p.line("No pool yet; next: holdfast pool create NAME --kind dedup --path DIR")
				return
			}
			p.row("NAME", "KIND", "STATE", "SETS", "LOGICAL", "STORED", "RATIO", "FREE")
			for _, x := range ps {
				if x.Usage == nil {
					p.row(x.Name, x.Kind, x.State, "", "", "", "", x.Error)
					continue
				}
				p.row(x.Name, x.Kind, poolState(x), x.Usage.Sets, cli.Size(x.Usage.Logical), cli.Size(x.Usage.Stored), ratio(x.Ratio), bytesOrNone(x.Usage.Free))
			}
		})
	}}
}

func poolLine(x api.Pool) string {
	if x.Usage == nil {
		return x.State + ", " + x.Error
	}
	return fmt.Sprintf("%s, %s, %s stored for %s (%s), %s free", poolState(x), plural(x.Usage.Sets, "set"), cli.Size(x.Usage.Stored), cli.Size(x.Usage.Logical), ratio(x.Ratio), bytesOrNone(x.Usage.Free))
}

// poolState is the state, and what else bears on whether the pool takes backups.
func poolState(x api.Pool) string {
	if x.Maintenance {
		return x.State + ", maintenance"
	}
	return x.State
}

// bytesOrNone shows bytes of a medium, which may have no bound.
func bytesOrNone(n int64) string {
	if n < 0 {
		return "no bound"
	}
	return cli.Size(n)
}

func dataRatio(x api.Pool) string {
	if x.Referenced == 0 && x.Usage.Sets > 0 {
		return "being counted"
	}
	return ratio(x.DataRatio)
}

func ratio(r float64) string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f:1", r)
}

// shownPool is a pool and where its bytes are.
type shownPool struct {
	api.Pool
	Space *api.PoolSpace `json:"space,omitempty"` // missing with --quick, and where a pool's sets share nothing
}

func (a *app) poolShow() *cobra.Command {
	var quick bool
	cmd := &cobra.Command{Use: "show NAME", Short: "Show a pool", Args: cobra.ExactArgs(1),
		Long: "Show a pool: what it is, its ratios, and where its bytes are. The last reads the map of every set, which takes a moment in a large pool.",
		RunE: func(c *cobra.Command, args []string) error {
			var x shownPool
			path := "/v1/pools/" + url.PathEscape(args[0])
			if err := a.call(c.Context(), "GET", path, nil, &x.Pool); err != nil {
				return err
			}
			if !quick && x.Usage != nil {
				var s api.PoolSpace
				err := a.call(c.Context(), "GET", path+"/space", nil, &s)
				if err != nil && holdfast.KindOf(err) != holdfast.Unsupported {
					return err
				}
				if err == nil {
					x.Space = &s
				}
			}
			return a.print(x, func(p *printer) {
				printPool(p, x.Pool)
				if x.Space != nil {
					p.line("")
					printSpace(p, *x.Space, true)
				}
			})
		}}
	cmd.Flags().BoolVar(&quick, "quick", false, "leave out where the bytes are")
	return cmd
}

func printPool(p *printer, x api.Pool) {
	p.row("name", x.Name)
	p.row("id", x.ID)
	p.row("kind", x.Kind)
	p.row("config", string(x.Config))
	p.row("chunking", x.Chunking)
	p.row("state", poolState(x), x.Error)
	if x.Quota > 0 {
		p.row("quota", cli.Size(x.Quota))
	}
	p.row("created", when(x.Created))
	u := x.Usage
	if u == nil {
		return
	}
	p.row("sets", u.Sets)
	p.row("logical", cli.Size(u.Logical))
	p.row("unique data", cli.Size(u.Data), plural(int(u.Chunks), "chunk"))
	p.row("physical", cli.Size(u.Stored))
	p.row("ratio, virtual", ratio(x.Ratio), "virtual size of the disks to stored bytes")
	p.row("ratio, data", dataRatio(x), "data that the sets refer to, "+cli.Size(x.Referenced)+", to stored bytes")
	if x.Referenced > 0 {
		p.row("  of it, dedup", ratio(quotient(x.Referenced, u.Data)), "data that the sets refer to, to unique data")
	}
	p.row("  of it, compression", ratio(quotient(u.Data, u.Stored)), "unique data to stored bytes")
	p.row("reclaimable", cli.Size(u.Reclaimable))
	p.row("free", bytesOrNone(u.Free), "of "+bytesOrNone(u.Size), fmt.Sprintf("%.0f %% full", x.Filled*100))
}

func quotient(n, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return float64(n) / float64(of)
}

func (a *app) poolVerify() *cobra.Command {
	return &cobra.Command{Use: "verify NAME", Short: "Read a pool back and check every byte", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return a.verify(c, "/v1/pools/"+url.PathEscape(args[0])+"/verify")
	}}
}

// verify asks for a verification; damage is an error.
func (a *app) verify(c *cobra.Command, path string) error {
	var r api.VerifyReport
	return a.job(c, path, &r, func(p *printer) {
		p.line("%s, %s, %s read.", plural(r.Sets, "set"), plural(int(r.Chunks), "chunk"), cli.Size(r.Bytes))
		for _, d := range r.Damaged {
			p.row("DAMAGED", d.Where, d.VM, d.Disk, d.Set, d.Text)
		}
		if len(r.Damaged) == 0 {
			p.line("Everything is as it was written.")
		}
	})
}

func (a *app) poolGC() *cobra.Command {
	var dry bool
	c := &cobra.Command{Use: "gc NAME", Short: "Give the space of deleted sets back", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		path := "/v1/pools/" + url.PathEscape(args[0]) + "/gc"
		if dry {
			path += "?dry_run=true"
		}
		var r api.CollectReport
		return a.job(c, path, &r, func(p *printer) {
			verb := "given back"
			if dry {
				verb = "would be given back"
			}
			p.line("%s %s: %s removed, %s rewritten (%s copied); %s waits for readers or a later run.", cli.Size(r.Freed), verb,
				plural(r.Removed, "container"), plural(r.Rewritten, "container"), cli.Size(r.Copied), cli.Size(r.Pending))
			p.line("%d chunks are in use, %d were not.", r.ChunksLive, r.ChunksDead)
		})
	}}
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be freed")
	return c
}

func (a *app) poolRecompress() *cobra.Command {
	var limit int64
	c := &cobra.Command{
		Use: "recompress NAME", Short: "Encode what has come to stay with fewer bytes", Args: cobra.ExactArgs(1),
		Long: "Encode what has come to stay with fewer bytes. It takes much processor time and can be stopped at any time; the next one goes on.",
		RunE: func(c *cobra.Command, args []string) error {
			path := "/v1/pools/" + url.PathEscape(args[0]) + "/recompress?limit=" + strconv.FormatInt(limit<<20, 10)
			var r api.RecompressReport
			return a.job(c, path, &r, func(p *printer) {
				p.line("%s rewritten: %s were %s; %s are still to be done.", plural(r.Containers, "container"), cli.Size(r.After), cli.Size(r.Before), cli.Size(r.Left))
			})
		},
	}
	c.Flags().Int64Var(&limit, "limit", 0, "stop after so many MiB; 0: do everything")
	return c
}
