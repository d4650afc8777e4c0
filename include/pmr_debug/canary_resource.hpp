#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Puts guard bytes before and behind each block of any upstream, and finds out who wrote over them.
///
/// \verbatim
///   one block of the upstream
///   +--------------------------------+-----------------------------+--------------------------+
///   | guard: 16 bytes, rounded up to | the user's block            | guard: up to a multiple  |
///   | the alignment                  | fresh: AA …, freed: DD …    | of 8, then 16 bytes      |
///   +--------------------------------+-----------------------------+--------------------------+
///                                    ^ what allocate returns
///
///   freed blocks:   newest -> | block | block | … | block | -> verified once more, then back to the upstream
///                               at most quarantine_bytes, and quarantine_blocks
/// \endverbatim
///
/// Each guard byte depends on its address, so a guard that was copied along with its block is wrong where it lands. It
/// lies within 0x80 … 0x9F: a stray terminating zero, ASCII, -1 and the fills always differ.
///
/// \code
///   pmr_debug::canary_resource guarded({.name = "guarded"});
///   std::pmr::vector<int> v({1, 2, 3}, &guarded);
///   assert(guarded.check() == 0);
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

namespace detail {

struct canary_core;

/// The part of a policy that shapes the code of a canary resource. Frame counts and guard bytes are data.
struct canary_shape {
    threading threads = threading::synchronized;
    bool checks = true;  ///< a live set is kept
    bool traces = true;  ///< its records hold trace ids
    bool guards = true;  ///< there are bytes around the block
    bool fill = true;    ///< fresh and freed bytes are filled
    bool waits = true;   ///< freed blocks go through the quarantine

    friend constexpr bool operator==(const canary_shape&, const canary_shape&) = default;
};

[[nodiscard]] constexpr canary_shape canary_shape_of(const policy& p) noexcept {
    if (!p.checks) {
        // Nobody would be told about a second thread.
        const threading counted = p.threads == threading::synchronized ? threading::synchronized : threading::unchecked;
        return {.threads = counted, .checks = false, .traces = false, .guards = false, .fill = false, .waits = false};
    }
    return {.threads = p.threads,
            .checks = true,
            .traces = p.alloc_frames != 0 || p.free_frames != 0,
            .guards = p.guard_bytes != 0,
            .fill = p.fill,
            .waits = p.freed != reuse::immediate};
}

/// Entry points of the compiled shapes. Defined and explicitly instantiated in the library for every valid shape.
template <canary_shape S>
struct canary_engine {
    static void* allocate(canary_core* core, std::size_t bytes, std::size_t alignment);
    static void deallocate(canary_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept;
};

}  // namespace detail

/// Options of a canary resource.
struct canary_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    /// Most memory that freed blocks wait in, in bytes, their guards and records included. A block that is larger by
    /// itself does not wait. 0: no quarantine.
    std::size_t quarantine_bytes = std::size_t{16} << 20;
    /// Most freed blocks that wait. So many small ones are still in the processor's cache when their turn comes; with
    /// more of them a deallocation takes up to twice as long. 0: only bytes count.
    std::size_t quarantine_blocks = 2048;
    /// 0: blocks are filled with 0xAA when fresh and 0xDD when freed. Else with bytes that depend on this number and
    /// their address, so that a program cannot come to rely on a value.
    std::uint64_t fill_seed = 0;
    /// About how many freed blocks are remembered, beyond those in quarantine, so that a double free is told from a
    /// stray pointer.
    std::size_t freed_records = 4096;
    bool audit_winked_out = false;  ///< before_upstream_release() reports live blocks as live_at_destruction
};

/// Freed blocks that the upstream did not get back yet. Bytes are the upstream's, guards included.
struct quarantine_statistics {
    std::size_t blocks = 0;          ///< waiting
    std::size_t bytes = 0;           ///< of those
    std::size_t damaged_blocks = 0;  ///< kept until destruction, as they were written over
    std::size_t damaged_bytes = 0;   ///< of those
};

/// What every instantiation shares: everything but the calls themselves.
class canary_resource_base : public std::pmr::memory_resource {
public:
    canary_resource_base(const canary_resource_base&) = delete;
    canary_resource_base& operator=(const canary_resource_base&) = delete;

    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    /// Counters, exact in every threading mode, `peak_*` included. `upstream_bytes` counts guards, and blocks in
    /// quarantine; `retired_units` are those blocks.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] quarantine_statistics quarantine() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;
    /// Effects: verifies the guards of live blocks, and guards and fill of those in quarantine; reports underrun,
    ///   overrun and write_after_free. A live block stays as it is, so the next check, and its deallocation, report it
    ///   again; a freed one is reported once and kept until destruction.
    /// Returns: the number of damaged blocks found. Thread safety: as the policy says.
    std::size_t check() noexcept;
    /// Effects: reports blocks live now, grouped by call path, as error_kind::leak. Returns: how many.
    std::size_t report_leaks() noexcept;
    /// To be called before an arena below takes all its memory back at once, by `release()` or by its end. The resource
    /// cannot see that, and would take what is written there next for writes after free.
    ///
    /// Effects: verifies all that is known, as check() does, while it can still be read; reports live blocks as
    ///   live_at_destruction if the options ask for the audit; then forgets live and freed blocks, without giving
    ///   anything back. Live ones count as deallocated; one that is freed later is an invalid_free with this call's
    ///   trace. Resources between this one and the arena need a call of their own.
    /// Returns: how many blocks were live.
    /// Preconditions: the memory is still there, and nobody uses the resource until it was taken back.
    std::size_t before_upstream_release() noexcept;
    /// Effects: under threading::single_checked, makes the next thread to use the resource its owner: to hand it over.
    ///   Otherwise none. Preconditions: nobody uses the resource meanwhile, and what was done before happens before
    ///   what the next thread does.
    void rebind_thread() noexcept;

protected:
    canary_resource_base(std::pmr::memory_resource* upstream, const canary_options& o, const policy& p);
    /// Checks everything, reports blocks still live as leaks, and gives the freed ones back to the upstream. The live
    /// ones stay with it: only their owner can free them.
    ~canary_resource_base() override;

    // Reached only by calls to a resource that was destroyed: reports destroyed_resource to the default handler.
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::canary_core* core_;
};

/// A canary resource under a policy. The upstream is asked for each block with room for two guards of at least
/// `guard_bytes`, at the alignment of the request (twice that, and as many bytes more, under `exact_alignment`); the
/// bytes that alignment adds are guard, too. All records are out of
/// line, so what runs over a guard meets no record.
///
/// Guards are verified on deallocation, by check(), and at destruction. A freed block waits in quarantine unless
/// `freed` is reuse::immediate, first in first out, and is verified before the upstream gets it back. The upstream
/// decides which address comes next, so even reuse::never only delays it. When the upstream is out of memory
/// (bad_alloc) all that wait go back to it, verified, and it is asked once more. A block that was written over is not
/// given back until destruction.
///
/// A double, invalid, interior, null or wrong-resource free never reaches the upstream; after a size or alignment
/// mismatch the upstream gets what was recorded. Whether the upstream gave memory that is in use is noticed only for
/// the very same address; blocks that overlap otherwise damage each other's guards, which is reported as that.
///
/// With `checks` off the memory is the upstream's as it is, and only counters are kept.
///
/// Throws: std::bad_alloc, and what the upstream throws. A null upstream is reported and ends the process.
/// Thread safety: as the policy says. single_checked: the records stay sound when a second thread comes;
/// `report::other` is the bound thread's last traced use, or its first use where no traces are kept. Reports: overrun,
/// underrun, write_after_free, double_free, invalid_free, interior_free, null_free, wrong_resource, size_mismatch,
/// alignment_mismatch, foreign_thread, bad_alignment, leak, live_at_destruction, upstream_null, upstream_misaligned,
/// upstream_overlap, null_upstream, destroyed_resource.
template <policy P>
class basic_canary_resource final : public canary_resource_base {
    static_assert(is_valid(P), "frames or guard bytes out of range, or traces, guards or fills without checks");
    using engine = detail::canary_engine<detail::canary_shape_of(P)>;

public:
    /// Upstream: std::pmr::new_delete_resource().
    basic_canary_resource() : basic_canary_resource(canary_options{}) {}
    explicit basic_canary_resource(detail::empty_braces /*options*/) : basic_canary_resource() {}
    explicit basic_canary_resource(const canary_options& o)
        : canary_resource_base(std::pmr::new_delete_resource(), o, P) {}
    explicit basic_canary_resource(detail::upstream_argument upstream, const canary_options& o = {})
        : canary_resource_base(upstream.get(), o, P) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return engine::allocate(core_, bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        engine::deallocate(core_, p, bytes, alignment);
    }
};

using canary_resource = basic_canary_resource<default_policy>;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
