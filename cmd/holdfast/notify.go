package main

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) notifyCmd() *cobra.Command {
	return cli.Group("notify", "Who is told of what happens", a.notifyStatus(), a.notifySet(),
		cli.Group("target", "Places that are told: mail, webhook, ntfy, gotify, syslog", a.targetAdd(), a.targetList(), a.targetShow(), a.targetSet(), a.targetTest(), a.targetDelete()))
}

const notifyPath = "/v1/notify"

func targetPath(name string) string { return notifyPath + "/targets/" + url.PathEscape(name) }

func (a *app) notifyStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show open alarms and how telling of them goes", Args: cobra.NoArgs,
		Long: "Show open alarms and how telling of them goes.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			var s api.NotifyStatus
			if err := a.call(c.Context(), "GET", notifyPath, nil, &s); err != nil {
				return err
			}
			return a.print(s, func(p *printer) {
				settings(p, s.Settings)
				p.line("")
				if len(s.Alarms) == 0 {
					p.line("No alarm is open.")
				}
				for _, x := range s.Alarms {
					p.row(strings.ToUpper(x.Severity.String()), x.Text, "since "+when(x.Raised), "told: "+or(strings.Join(x.Told, ", "), "nobody"))
				}
				p.line("")
				if len(s.Targets) == 0 {
					p.line("Nobody is told; next: holdfast notify target add NAME --kind mail --set host=... --set from=... --set to=...")
					return
				}
				p.row("TARGET", "KIND", "WAITING", "HELD", "DIGEST", "LAST SENT", "PROBLEM")
				for _, t := range s.Targets {
					name := t.Name
					if t.Disabled {
						name += " (disabled)"
					}
					p.row(name, t.Kind, t.Queued, t.Held, t.Digest, when(t.Success), t.Error)
				}
			})
		},
	}
}

func settings(p *printer, s api.NotifySettings) {
	p.row("name in messages", or(s.Site, "(the machine's)"))
	p.row("time zone", or(s.Zone, "(the machine's)"))
	p.row("told again after", or(s.Remind, "never"))
	p.row("VM alarm without a point for", or(s.Stale, "never"))
}

func or(s, otherwise string) string {
	if s == "" || s == "0" {
		return otherwise
	}
	return s
}

func (a *app) notifySet() *cobra.Command {
	var site, zone, remind, stale string
	c := &cobra.Command{
		Use: "set", Short: "Change what holds for all targets", Args: cobra.NoArgs,
		Long: "Change what holds for all targets. What is not named stays.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			var ch api.NotifyChange
			for name, x := range map[string]struct {
				to   **string
				from *string
			}{"site": {&ch.Site, &site}, "zone": {&ch.Zone, &zone}, "remind": {&ch.Remind, &remind}, "stale": {&ch.Stale, &stale}} {
				if c.Flags().Changed(name) {
					*x.to = x.from
				}
			}
			var s api.NotifySettings
			if err := a.call(c.Context(), "PATCH", notifyPath, ch, &s); err != nil {
				return err
			}
			return a.print(s, func(p *printer) { settings(p, s) })
		},
	}
	c.Flags().StringVar(&site, "site", "", "the appliance's name in messages; empty: the machine's")
	c.Flags().StringVar(&zone, "zone", "", "time zone of windows, digests and times, like Europe/Berlin; empty: the machine's")
	c.Flags().StringVar(&remind, "remind", "", "tell of an open alarm again after so long, like 24h; empty: never")
	c.Flags().StringVar(&stale, "stale", "", "alarm where a VM that was backed up before has no good point so recent, like 72h; 0: never")
	return c
}

func (a *app) targetList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List targets", Args: cobra.NoArgs, Long: "List targets.\n\n" + cli.ExitHelp, RunE: func(c *cobra.Command, _ []string) error {
		var ts []notify.Target
		if err := a.call(c.Context(), "GET", notifyPath+"/targets", nil, &ts); err != nil {
			return err
		}
		return a.print(ts, func(p *printer) {
			if len(ts) == 0 {
				p.line("No target yet; next: holdfast notify target add NAME --kind mail --set host=... --set from=... --set to=...")
				return
			}
			p.row("NAME", "KIND", "GOES TO", "RULES", "STATE")
			for _, t := range ts {
				state := "on"
				if t.Disabled {
					state = "disabled"
				}
				p.row(t.Name, t.Kind(), goesTo(t), len(t.Rules), state)
			}
		})
	}}
}

// goesTo says where a target's messages go, without secrets.
func goesTo(t notify.Target) string {
	switch {
	case t.Mail != nil:
		return strings.Join(t.Mail.To, ", ") + " through " + t.Mail.Host
	case t.Webhook != nil:
		return t.Webhook.URL
	case t.Ntfy != nil:
		return t.Ntfy.Topic + " at " + t.Ntfy.URL
	case t.Gotify != nil:
		return t.Gotify.URL
	case t.Syslog != nil:
		return t.Syslog.Network + " " + t.Syslog.Address
	}
	return ""
}

func (a *app) targetShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show a target; secrets show as ***", Args: cobra.ExactArgs(1), Long: "Show a target; secrets show as ***.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var t notify.Target
			if err := a.call(c.Context(), "GET", targetPath(args[0]), nil, &t); err != nil {
				return err
			}
			return a.showTarget(t)
		}}
}

// showTarget prints a target in the form that 'target add --file' reads.
func (a *app) showTarget(t notify.Target) error {
	text, err := targetJSON(t)
	if err != nil {
		return err
	}
	return a.print(t, func(p *printer) { p.line("%s", text) })
}

func (a *app) targetTest() *cobra.Command {
	return &cobra.Command{Use: "test NAME", Short: "Send a message to a target now and show what it answered", Args: cobra.ExactArgs(1),
		Long: "Send a message to a target now, past rules and queue, and show what it answered.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var t api.NotifyTested
			if err := a.call(c.Context(), "POST", targetPath(args[0])+"/test", nil, &t); err != nil {
				return err
			}
			return a.print(t, func(p *printer) { p.line("%s has taken the test message.", cli.Clean(t.Name)) })
		}}
}

func (a *app) targetDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: "delete NAME", Short: "Remove a target and what waits for it", Args: cobra.ExactArgs(1), Long: "Remove a target and what waits for it.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var s api.NotifyStatus
			if err := a.call(c.Context(), "GET", notifyPath, nil, &s); err != nil {
				return err
			}
			for _, t := range s.Targets {
				if n := t.Queued + t.Held + t.Digest; t.Name == args[0] && n > 0 {
					if err := a.confirm(yes, fmt.Sprintf("%s wait for target %q and will never be sent.", plural(n, "message"), t.Name)); err != nil {
						return err
					}
				}
			}
			var t notify.Target
			if err := a.call(c.Context(), "DELETE", targetPath(args[0]), nil, &t); err != nil {
				return err
			}
			return a.print(t, func(p *printer) { p.line("Target %s is removed.", cli.Clean(t.Name)) })
		}}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask where messages wait")
	return c
}
