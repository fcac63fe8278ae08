// Command holdfastd is the appliance's daemon. It needs nothing but a folder: holdfastd --data DIR.
//
// It prints one line on standard output when it serves ("ready https://HOST:PORT …") and logs to standard error. SIGTERM and SIGINT stop
// it; whatever stops it, it is ready again in seconds. Everything it keeps is owned by package appliance.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/process"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Report(os.Stderr, "holdfastd", false, command().ExecuteContext(ctx)))
}

func command() *cobra.Command {
	c := appliance.Config{Version: cli.Version()}
	var logFormat string
	cmd := &cobra.Command{
		Use:           "holdfastd --data DIR",
		Short:         "Run a Holdfast appliance",
		Long:          "Run a Holdfast appliance.\n\nExit codes: 0 stopped, 1 failed, 2 wrong usage, 6 the folder or port is in use, 7 damage found.",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch logFormat {
			case "text":
				c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			case "json":
				c.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
			default:
				return holdfast.Errorf(holdfast.Invalid, "", "unknown log format %q", logFormat).Advise("use --log text or --log json")
			}
			return serve(cmd.Context(), c)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'holdfastd --help' shows how to use it")
	})
	data := os.Getenv("HOLDFAST_DATA")
	if data == "" {
		data = "/var/lib/holdfast"
	}
	cmd.Flags().StringVar(&c.Data, "data", data, "the appliance's own folder (or HOLDFAST_DATA)")
	cmd.Flags().StringVar(&c.Listen, "listen", "", "HOST:PORT for agents; port 0 takes a free one (default: every address, port 60305)")
	cmd.Flags().StringVar(&logFormat, "log", "text", "form of the log: text or json")
	return cmd
}

// memory is how the daemon's heap grows. What sessions hold is bounded where they hold it.
var memory = process.Memory{Percent: 15}

func serve(ctx context.Context, c appliance.Config) (err error) {
	process.Limit(memory)
	stop, err := process.Profile("holdfastd")
	if err != nil {
		return holdfast.Errorf(holdfast.Invalid, "make profiles", "%w", err)
	}
	defer func() { err = errors.Join(err, stop()) }()
	d, err := appliance.Start(ctx, c)
	if err != nil {
		return err
	}
	if _, err := fmt.Printf("ready https://%s data %s\n", d.Addr(), c.Data); err != nil {
		return errors.Join(holdfast.Errorf(holdfast.Internal, "print address", "%w", err), d.Close())
	}
	<-ctx.Done()
	c.Log.Info("stopping")
	return d.Close()
}
