// Package observe shows what a [wireguard.Device] does: Log writes its events to a slog.Logger, and Var publishes its
// counters through package expvar.
//
//	go observe.Log(ctx, device, slog.Default())
//	expvar.Publish("wireguard", observe.Var{Device: device})
//
// Package observe/prom has a collector for Prometheus. It is a package of its own, so that programs that do not import it
// do not link Prometheus's library.
//
// Everything here reads Device.Status, Device.Peers and Device.Subscribe. Nothing runs for a packet, and nothing holds a
// secret.
package observe
