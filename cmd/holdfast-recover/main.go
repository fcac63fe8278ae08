// Command holdfast-recover lists and restores backup sets from what a pool left on disks or in buckets: without an appliance, without a catalog, and
// from folders without a network. It is one static binary that fits on the medium beside the pool.
//
// It never writes to a pool. A restore that was killed leaves a file with the suffix .partial, never one that looks whole. Everything about formats is
// package rescue's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/seal"
	"github.com/holdfast-backup/holdfast/rescue"
)

const program = "holdfast-recover"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{out: os.Stdout, errw: os.Stderr, json: slices.Contains(os.Args[1:], "--json")}
	os.Exit(a.main(ctx, os.Args[1:]))
}

// An app is one invocation.
type app struct {
	out, errw io.Writer
	json      bool
	at        flags
}

// flags say where the pool is.
type flags struct {
	paths, buckets                                []string
	endpoint, prefix, region, style               string
	accessKey, secretKey, ca, keyFile, passphrase string
}

func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.errw)
	err := root.ExecuteContext(ctx)
	if ctx.Err() != nil && err != nil {
		err = &cli.ExitError{Code: cli.Interrupted, Err: err}
	}
	return cli.Report(a.errw, program, a.json, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Restore from a pool's disks or buckets, without an appliance",
		Long: "List and restore backup sets from a pool's folder, a standard pool's paths, the folders of a striped pool, or a bucket. No appliance, no catalog,\n" +
			"and for folders no network is needed; of a striped pool some folders may be missing. The pool is never written to.\n\n" + cli.ExitHelp,
		Example: "  " + program + " list --path /mnt/pool\n" +
			"  " + program + " restore --path /mnt/pool SET --disk 0 --format vhdx --output db.vhdx\n" +
			"  " + program + " list --path /d1 --path /d2 --path /d3 --key-file sheet.txt\n" +
			"  " + program + " list --endpoint https://s3.example.com --bucket backups --access-key-file ak --secret-key-file sk",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return cli.UsageError(c, err) })
	f := root.PersistentFlags()
	f.StringArrayVar(&a.at.paths, "path", nil, "folder of the pool; several for a standard or a striped pool, in any order")
	f.StringVar(&a.at.endpoint, "endpoint", "", "URL of an S3 server")
	f.StringArrayVar(&a.at.buckets, "bucket", nil, "bucket; several for a striped pool")
	f.StringVar(&a.at.prefix, "prefix", "", "folder in the bucket that the pool lives in")
	f.StringVar(&a.at.region, "region", "", "region of the bucket")
	f.StringVar(&a.at.style, "bucket-style", "", "how buckets are addressed: path or host (default: by the endpoint)")
	f.StringVar(&a.at.accessKey, "access-key-file", "", "file with the access key")
	f.StringVar(&a.at.secretKey, "secret-key-file", "", "file with the secret key")
	f.StringVar(&a.at.ca, "ca", "", "file with certificates to trust (PEM)")
	f.StringVar(&a.at.keyFile, "key-file", "", "of an encrypted pool: its key file, or a file with the key from the recovery sheet")
	f.StringVar(&a.at.passphrase, "passphrase-file", "", "of an encrypted pool: file with the passphrase in its first line")
	f.BoolVar(&a.json, "json", a.json, "print JSON, for programs; errors too")
	root.AddCommand(a.list(), a.restore())
	cli.WrapArgs(root)
	return root
}

// open opens the pool that the flags name.
func (a *app) open(ctx context.Context) (*rescue.Pool, error) {
	at := rescue.Place{Paths: a.at.paths}
	if (len(a.at.paths) > 0) == (len(a.at.buckets) > 0) || (a.at.endpoint != "") != (len(a.at.buckets) > 0) {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "where the pool is must be said with --path, or with --endpoint and --bucket").Advise("'%s --help' has examples", program)
	}
	var err error
	if at.Secret, err = a.at.secret(); err != nil {
		return nil, err
	}
	for _, b := range a.at.buckets {
		c, err := a.at.bucket(b)
		if err != nil {
			return nil, err
		}
		at.Buckets = append(at.Buckets, c)
	}
	return rescue.Open(ctx, at)
}

// maxSmallFile bounds files with keys and certificates.
const maxSmallFile = 1 << 20

func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.NotExist, "", "%w", err).Advise("look whether the name is right")
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile+1))
	if err != nil || len(b) > maxSmallFile {
		return nil, errors.Join(err, holdfast.Errorf(holdfast.Invalid, "", "%s cannot be read, or is no such file", name))
	}
	return b, nil
}

func (f *flags) secret() (seal.Secret, error) {
	kind, name := seal.KeyFile, f.keyFile
	switch {
	case f.keyFile != "" && f.passphrase != "":
		return seal.Secret{}, holdfast.Errorf(holdfast.Invalid, "", "both --key-file and --passphrase-file").Advise("either opens the pool; name one")
	case f.passphrase != "":
		kind, name = seal.Passphrase, f.passphrase
	case f.keyFile == "":
		return seal.Secret{}, nil
	}
	b, err := readSmall(name)
	if err != nil {
		return seal.Secret{}, err
	}
	return seal.Read(kind, b)
}

func (f *flags) bucket(name string) (s3store.Config, error) {
	c := s3store.Config{Endpoint: f.endpoint, Bucket: name, Prefix: f.prefix, Region: f.region, Clock: clock.System}
	switch f.style {
	case "":
	case "path":
		c.Style = s3store.PathStyle
	case "host":
		c.Style = s3store.HostStyle
	default:
		return c, holdfast.Errorf(holdfast.Invalid, "", "no bucket style %q", f.style).Advise("use path or host")
	}
	for file, set := range map[string]func([]byte){
		f.accessKey: func(b []byte) { c.AccessKey = s3store.Secret(strings.TrimSpace(string(b))) },
		f.secretKey: func(b []byte) { c.SecretKey = s3store.Secret(strings.TrimSpace(string(b))) },
		f.ca:        func(b []byte) { c.CA = b },
	} {
		if file == "" {
			continue
		}
		b, err := readSmall(file)
		if err != nil {
			return c, err
		}
		set(b)
	}
	return c, nil
}

// A listed is one set as the list shows it.
type listed struct {
	ID    string    `json:"id"`
	VM    string    `json:"vm"`
	VMID  string    `json:"vm_id"`
	Host  string    `json:"host"`
	Time  time.Time `json:"time"`
	Kind  string    `json:"kind"`
	Disks []disk    `json:"disks"`
}

type disk struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// A listing is what list prints.
type listing struct {
	Pool       string   `json:"pool"`
	Kind       string   `json:"kind"`
	Sets       []listed `json:"sets"`
	Unreadable []string `json:"unreadable"`
}

func (a *app) list() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the backup sets of a pool", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) (err error) {
		p, err := a.open(c.Context())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		l := listing{Pool: p.ID().String(), Kind: p.Kind(), Sets: []listed{}, Unreadable: []string{}}
		for m, err := range p.Sets(c.Context()) {
			if err != nil {
				l.Unreadable = append(l.Unreadable, err.Error())
				continue
			}
			x := listed{ID: m.ID.String(), VM: m.VM.Name, VMID: m.VM.ID.String(), Host: m.HostName, Time: m.Created, Kind: string(m.Kind), Disks: []disk{}}
			for _, d := range m.Disks {
				x.Disks = append(x.Disks, disk{d.Name, d.Size})
			}
			l.Sets = append(l.Sets, x)
		}
		slices.SortFunc(l.Sets, func(x, y listed) int { return strings.Compare(x.ID, y.ID) }) // ids sort by time
		if err := a.print(l, func(w io.Writer) { l.text(w) }); err != nil {
			return err
		}
		if n := len(l.Unreadable); n > 0 {
			return &cli.ExitError{Code: cli.Partial, Err: holdfast.Errorf(holdfast.Corrupt, "", "%d things could not be read", n).Advise("the sets that are listed can be restored")}
		}
		return nil
	}}
}

func (l *listing) text(w io.Writer) {
	fmt.Fprintf(w, "SET\tVM\tHOST\tPOINT IN TIME\tKIND\tDISKS\n")
	for _, s := range l.Sets {
		var disks []string
		for i, d := range s.Disks {
			disks = append(disks, fmt.Sprintf("%d: %s (%s)", i, cli.Clean(d.Name), cli.Size(d.Size)))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, cli.Clean(s.VM), cli.Clean(s.Host), s.Time.UTC().Format(time.RFC3339), s.Kind, strings.Join(disks, ", "))
	}
	for _, u := range l.Unreadable {
		fmt.Fprintf(w, "UNREADABLE\t%s\n", cli.Clean(u))
	}
}

// print shows a value as JSON or as text.
func (a *app) print(v any, text func(io.Writer)) error {
	if a.json {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	tw := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	text(tw)
	return tw.Flush()
}
