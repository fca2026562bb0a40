package facts

import (
	"context"
	"log/slog"
	"math/bits"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
)

// tools are the programs whose presence is a fact. None of them is run: a version
// is for an external fact to tell.
var tools = []string{
	"ansible", "ant", "bash", "buildah", "bun", "cargo", "clang", "cmake", "curl", "cue", "deno", "docker", "dotnet", "facter", "gcc", "git",
	"go", "gradle", "helm", "java", "javac", "jq", "kubectl", "make", "mvn", "nix", "node", "npm", "perl", "php", "podman", "psql", "puppet",
	"pwsh", "python3", "rsync", "ruby", "rustc", "scp", "sh", "ssh", "svn", "swift", "tar", "terraform", "tofu", "unzip", "wget", "xcodebuild", "zip",
}

// builtin returns what can be known without running anything. A part that this
// platform does not tell is absent.
func builtin(ctx context.Context, dir string, log *slog.Logger) map[string]any {
	skip := func(what string, err error) {
		log.DebugContext(ctx, "built-in fact not available", slog.String("fact", what), slog.Any("err", err))
	}
	f := map[string]any{
		"kernel":       kernelName(runtime.GOOS),
		"architecture": runtime.GOARCH,
		"tools":        foundTools(),
	}
	if name, err := os.Hostname(); err == nil {
		f["hostname"] = name
	} else {
		skip("hostname", err)
	}
	if release, err := host.KernelVersionWithContext(ctx); err == nil {
		f["kernelrelease"] = release
	} else {
		skip("kernelrelease", err)
	}
	if name, family, release, err := host.PlatformInformationWithContext(ctx); err == nil {
		f["os"] = map[string]any{"name": osName(name), "family": osFamily(family, name), "release": release}
	} else {
		skip("os", err)
	}
	f["cpus"] = cpus(ctx, skip)
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		f["memory"] = map[string]any{"total_mb": m.Total >> 20, "available_mb": round(m.Available >> 20)}
	} else {
		skip("memory", err)
	}
	if d, err := disk.UsageWithContext(ctx, existing(dir)); err == nil {
		f["disk"] = map[string]any{"total_mb": d.Total >> 20, "free_mb": round(d.Free >> 20)}
	} else {
		skip("disk", err)
	}
	f["network"] = network(skip)
	f["virtual"] = "physical"
	if system, role, err := host.VirtualizationWithContext(ctx); err == nil && role == "guest" && system != "" {
		f["virtual"] = system
	} else if err != nil {
		skip("virtual", err)
		delete(f, "virtual")
	}
	return f
}

func cpus(ctx context.Context, skip func(string, error)) map[string]any {
	f := map[string]any{"count": runtime.NumCPU()}
	info, err := cpu.InfoWithContext(ctx)
	switch {
	case err != nil:
		skip("cpus.model", err)
	case len(info) > 0 && info[0].ModelName != "":
		f["model"] = strings.Join(strings.Fields(info[0].ModelName), " ")
	}
	return f
}

// round keeps three significant bits, downwards: at most a quarter is hidden, and
// a number that moves a little mostly stays the same.
func round(n uint64) uint64 {
	drop := max(0, bits.Len64(n)-3)
	return n >> drop << drop
}

// existing is dir or the nearest folder above it that exists.
func existing(dir string) string {
	dir, err := filepath.Abs(dir)
	for err == nil {
		if _, statErr := os.Stat(dir); statErr == nil || filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func foundTools() map[string]any {
	f := map[string]any{}
	for _, name := range tools {
		if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) {
			f[name] = path
		}
	}
	return f
}

// maxInterfaces bounds the interfaces told; hosts of containers have hundreds.
const maxInterfaces = 32

func network(skip func(string, error)) map[string]any {
	f := map[string]any{}
	all, err := net.Interfaces()
	if err != nil {
		skip("network", err)
		return f
	}
	names := map[string]any{}
	for _, i := range all {
		// The far ends of containers come and go with every task.
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 || strings.HasPrefix(i.Name, "veth") || len(names) == maxInterfaces {
			continue
		}
		one := addresses(i)
		if len(one) == 0 {
			continue
		}
		names[i.Name] = one
		if _, known := f["ip"]; !known && one["ip"] != nil {
			f["ip"] = one["ip"]
		}
	}
	f["interfaces"] = names
	if ip := routeIP(); ip != "" {
		f["ip"] = ip
	}
	return f
}

func addresses(i net.Interface) map[string]any {
	one := map[string]any{}
	addrs, err := i.Addrs()
	if err != nil {
		return one
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		key := "ip6"
		if n.IP.To4() != nil {
			key = "ip"
		}
		if one[key] == nil {
			one[key] = n.IP.String()
		}
	}
	return one
}

// routeIP is the address that packets to the outside would have. Connecting a UDP
// socket looks up the route and sends nothing; the address is one for documentation.
func routeIP() string {
	c, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return ""
	}
	defer c.Close()
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok && a.IP.IsGlobalUnicast() {
		return a.IP.String()
	}
	return ""
}

// kernelName is what uname and Facter call the kernel.
func kernelName(goos string) string {
	switch goos {
	case "windows":
		return "windows"
	case "freebsd":
		return "FreeBSD"
	}
	return capital(goos)
}

// Names as Facter writes them, where that is more than a capital letter.
var (
	osNames = map[string]string{
		"centos": "CentOS", "redhat": "RedHat", "rhel": "RedHat", "oracle": "OracleLinux", "almalinux": "AlmaLinux", "opensuse": "OpenSuSE",
		"arch": "Archlinux", "sles": "SLES", "suse": "SLES", "amazon": "Amazon", "linuxmint": "LinuxMint", "freebsd": "FreeBSD",
	}
	osFamilies = map[string]string{"rhel": "RedHat", "fedora": "RedHat", "suse": "Suse", "arch": "Archlinux", "freebsd": "FreeBSD"}
)

func osName(platform string) string {
	if strings.HasPrefix(strings.ToLower(platform), "microsoft windows") {
		return "windows"
	}
	if n, ok := osNames[platform]; ok {
		return n
	}
	return capital(platform)
}

// osFamily: on some platforms gopsutil's family says less than the name.
func osFamily(family, platform string) string {
	switch runtime.GOOS {
	case "windows":
		return "windows"
	case "darwin":
		return "Darwin"
	}
	if n, ok := osFamilies[family]; ok {
		return n
	}
	if family == "" {
		family = platform
	}
	return capital(family)
}

func capital(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
