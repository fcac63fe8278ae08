package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

func (a *app) scheduleCmd() *cobra.Command {
	var zone string
	preview := &cobra.Command{
		Use: "preview SPEC [N]", Short: "Say when a schedule runs next", Long: "Say when a schedule runs the next N times (10). No daemon is needed.\n\n" + scheduleHelp + "\n\n" + cli.ExitHelp,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			n := 10
			if len(args) == 2 {
				var err error
				if n, err = strconv.Atoi(args[1]); err != nil || n < 1 || n > 1000 {
					return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "%q is not a number from 1 to 1000", args[1]).Advise("for example: holdfast schedule preview 'daily 22:00' 5"))
				}
			}
			// What a schedule means hangs on nothing but the clock: no daemon is asked.
			t, z, times, err := job.Preview(args[0], zone, clock.System.Now(), n)
			if err != nil {
				return err
			}
			out := api.SchedulePreview{Spec: t.Spec, Type: t.Type, Zone: z.String(), Times: times}
			return a.print(out, func(p *printer) {
				for _, t := range out.Times {
					p.line("%s", t.Format("Mon 2006-01-02 15:04:05 -07:00"))
				}
				if len(out.Times) == 0 {
					p.line("never")
				}
			})
		},
	}
	preview.Flags().StringVar(&zone, "zone", "", "time zone, like Europe/Berlin; UTC if not given")
	return cli.Group("schedule", "Schedules: when jobs run", preview)
}
