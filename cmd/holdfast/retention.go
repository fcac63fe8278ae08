package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const policyHelp = `A policy is one line, like days=30,weekly=8,monthly=12,min=2. Words: days, count, quota (SIZE), hourly, daily, weekly, monthly, yearly,
min, delay; or forever. The newest good point of a virtual machine never expires. The policy of a job is for the sets that the job wrote, that
of a pool for the others in it; sets without one stay. Retention is applied after each job and once a day.`

func (a *app) retentionCmd() *cobra.Command {
	return cli.Group("retention", "Retention: how long sets stay", a.retentionSet(), a.retentionShow(), a.retentionSimulate(), a.retentionApply())
}

func (a *app) retentionSet() *cobra.Command {
	var ch api.PolicyChange
	var zone string
	c := &cobra.Command{
		Use: "set (--job J | --pool P) POLICY", Short: "Set the policy of a job or a pool",
		Long: "Set the policy of a job or a pool; an empty one ('') removes it. Look first what it would do: holdfast retention simulate --pool P --policy POLICY\n\n" + policyHelp + "\n\n" + cli.ExitHelp,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				ch.Policy = args[0]
			} else if ch.Job+ch.Pool != "" || zone == "" {
				return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "the policy is missing").Advise("for example: holdfast retention set --pool main days=30,weekly=8"))
			}
			if c.Flags().Changed("zone") {
				ch.Zone = &zone
			}
			var out api.Policies
			if err := a.call(c.Context(), "PUT", "/v1/retention", ch, &out); err != nil {
				return err
			}
			return a.print(out, func(p *printer) { showPolicies(p, out) })
		},
	}
	c.Flags().StringVar(&ch.Job, "job", "", "for the sets that this job wrote")
	c.Flags().StringVar(&ch.Pool, "pool", "", "for the other sets of this pool")
	c.Flags().StringVar(&zone, "zone", "", "time zone in which days, weeks and months are counted")
	return c
}

func showPolicies(p *printer, out api.Policies) {
	p.row("OF", "NAME", "POLICY")
	for _, x := range out.Jobs {
		p.row("job", x.Name, x.Policy)
	}
	for _, x := range out.Pools {
		p.row("pool", x.Name, x.Policy)
	}
	p.line("Days are counted in the zone %s; the daily round was last done: %s.", out.Zone, when(out.Last))
}

func (a *app) retentionShow() *cobra.Command {
	return &cobra.Command{Use: "show", Short: "Show the policies", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var out api.Policies
		if err := a.call(c.Context(), "GET", "/v1/retention", nil, &out); err != nil {
			return err
		}
		return a.print(out, func(p *printer) { showPolicies(p, out) })
	}}
}

func (a *app) retentionSimulate() *cobra.Command {
	var ask api.RetentionAsk
	var timeline, now string
	c := &cobra.Command{
		Use: "simulate (--pool P | --timeline FILE --policy POLICY)", Short: "Say what would stay and what would go, and why",
		Long: "Say what would stay and what would go, and why, without changing anything. For a timeline no daemon is needed. It is a file (- for standard input) with imagined points:\n" +
			`[{"set":ID,"vm":ID,"vm_name":"db","time":"2026-01-31T22:00:00Z","state":"good","unique":1048576}, ...]` + "\n\n" + policyHelp + "\n\n" + cli.ExitHelp,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if timeline != "" {
				if err := a.readTimeline(timeline, &ask); err != nil {
					return err
				}
			}
			if now != "" {
				t, err := time.Parse(time.RFC3339, now)
				if err != nil {
					return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "%q is not a time like 2026-12-01T00:00:00Z", now))
				}
				ask.Now = t
			}
			out, err := a.simulate(c.Context(), ask)
			if err != nil {
				return err
			}
			return a.print(out, func(p *printer) { showRetention(p, out) })
		},
	}
	f := c.Flags()
	f.StringVar(&ask.Pool, "pool", "", "the pool whose sets are looked at")
	f.StringVar(&ask.Policy, "policy", "", "a policy to try instead of those that are set")
	f.StringVar(&timeline, "timeline", "", "a file with imagined points instead of a pool")
	f.StringVar(&now, "now", "", "as if it were then (RFC 3339)")
	f.StringVar(&ask.Zone, "zone", "", "as if this zone were set; of a timeline: UTC if not given")
	return c
}

// simulate asks the daemon what it would do to a pool. What becomes of imagined points it need not be asked.
func (a *app) simulate(ctx context.Context, ask api.RetentionAsk) (out api.RetentionReport, err error) {
	if len(ask.Points) == 0 {
		err = a.call(ctx, "POST", "/v1/retention/simulate", ask, &out)
		return out, err
	}
	zone, err := job.Zone(ask.Zone)
	if err != nil {
		return out, err
	}
	if ask.Now.IsZero() {
		ask.Now = clock.System.Now()
	}
	return api.SimulateTimeline(ask, ask.Now, zone)
}

const maxTimeline = 64 << 20

func (a *app) readTimeline(name string, ask *api.RetentionAsk) (err error) {
	in := a.in
	if name != "-" {
		f, e := os.Open(name)
		if e != nil {
			return holdfast.Errorf(holdfast.NotExist, "read timeline", "%w", e)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTimeline))
	if err == nil {
		err = json.Unmarshal(b, &ask.Points)
	}
	if err == nil && len(ask.Points) == 0 {
		err = fmt.Errorf("it has no points")
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Invalid, "read timeline", "%s: %w", name, err).Advise("'holdfast retention simulate --help' shows its form")
	}
	return nil
}

// showRetention prints what was decided, or done: the same lines for both.
func showRetention(p *printer, r api.RetentionReport) {
	p.row("VM", "POINT IN TIME", "DECISION", "FREES", "REASON", "POLICY OF", "SET")
	for _, d := range r.Decisions {
		what, frees := "keep", ""
		if !d.Keep {
			what, frees = "remove", cli.Size(d.Frees)
		}
		p.row(d.VMName, d.Time.UTC().Format("2006-01-02 15:04:05Z"), what, orDash(frees), d.Reason, orDash(d.Of), d.Set)
	}
	about := ""
	if r.Estimate {
		about = " (an estimate: what the sets added when they were written)"
	}
	p.line("%d stay, %d go; the next collect gives back %s%s.", r.Kept, r.Removed, cli.Size(r.Frees), about)
	for _, e := range r.Errors {
		p.row("NOT DELETED", e)
	}
}

func (a *app) retentionApply() *cobra.Command {
	var pool string
	var yes, dry bool
	c := &cobra.Command{
		Use: "apply --pool P", Short: "Delete what has expired in a pool", Long: "Delete what has expired in a pool, for good. It says first how much that is.\n\n" + policyHelp + "\n\n" + cli.ExitHelp,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var r api.RetentionReport
			if err := a.call(c.Context(), "POST", "/v1/retention/simulate", api.RetentionAsk{Pool: pool}, &r); err != nil {
				return err
			}
			if r.Removed > 0 && !dry {
				if err := a.confirm(yes, fmt.Sprintf("%s of pool %s will be deleted for good, about %s.", plural(r.Removed, "set"), cli.Clean(r.Pool), cli.Size(r.Frees))); err != nil {
					return err
				}
				var done api.RetentionReport
				return a.job(c, "/v1/retention/apply?pool="+url.QueryEscape(pool), &done, func(p *printer) { showRetention(p, done) })
			}
			return a.print(r, func(p *printer) { showRetention(p, r) })
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "the pool")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would go")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	_ = c.MarkFlagRequired("pool") // fails only for a flag that is not there
	return c
}

func (a *app) setHold() *cobra.Command {
	var until string
	c := &cobra.Command{
		Use: "hold SET --until TIME", Short: "Keep a set from being deleted until a time, which can only be extended",
		Long: "Keep a set from being deleted, by retention or by hand, until a time, which can only be extended. The appliance keeps the hold, not the pool:\nwho can reach the pool's files can still remove them.\n\n" + cli.ExitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			t, err := time.Parse(time.RFC3339, until)
			if err != nil {
				if t, err = time.ParseInLocation(time.DateOnly, until, time.Local); err != nil {
					return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "%q is neither a date like 2027-01-31 nor a time like 2027-01-31T12:00:00Z", until))
				}
			}
			var s api.Set
			if err := a.call(c.Context(), "POST", "/v1/sets/"+url.PathEscape(args[0])+"/hold", api.SetHold{Until: t}, &s); err != nil {
				return err
			}
			return a.print(s, func(p *printer) { p.line("Set %s of %s is held until %s.", s.ID, cli.Clean(s.VM), when(s.Hold)) })
		},
	}
	c.Flags().StringVar(&until, "until", "", "a date or time")
	_ = c.MarkFlagRequired("until") // fails only for a flag that is not there
	return c
}
