#pragma once

// A resource lists its live blocks, floor 4. In a chain each is listed once, by the topmost resource that knows it, or
// by one below if that speaks first: what another has listed already is counted here, and named in one line.

#include "metadata/registry.hpp"
#include "metadata/told_leaks.hpp"
#include "report/leaks.hpp"

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail {

/// One listing. The live blocks are added with the resource's own locks held; the constructor and the other members
/// must be called without.
///
/// Thread safety: one thread at a time.
class leak_listing {
public:
    /// \p self: whose blocks they are; may be null.
    explicit leak_listing(const metadata::resource_record* self) noexcept;
    leak_listing(const leak_listing&) = delete;
    leak_listing& operator=(const leak_listing&) = delete;
    ~leak_listing();

    /// Effects: adds a live block of \p bytes at \p address. \p serial: its number, 0 if not kept. \p below: the
    /// upstream's block that it lies in, see fill(); a null base: it has none of its own.
    void add(trace_id allocated, std::size_t bytes, const void* address, std::uint64_t serial,
             const metadata::block_below& below = {}) noexcept;

    /// Returns: the number of blocks added.
    [[nodiscard]] std::size_t blocks() const noexcept { return groups_.total_blocks() + listed_blocks_; }

    /// Effects: fills in what \p r says of leaks, which is valid as long as this object. The resources below learn what
    ///   is listed here, and living ones above.
    void fill(report& r) noexcept;

private:
    bool is_listed(trace_id allocated, std::size_t bytes, std::uint64_t serial) noexcept;
    void note(const metadata::block_below& below) noexcept;

    const metadata::resource_record* self_;
    metadata::told_leaks told_;
    bool stood_on_;
    metadata::told_leaks own_;  // what is listed here, for those above
    std::uintptr_t own_from_ = UINTPTR_MAX;
    std::uintptr_t own_to_ = 0;
    leak_grouper groups_;
    std::uint64_t first_teller_ = 0;
    bool several_tellers_ = false;
    std::size_t listed_blocks_ = 0;
    std::size_t listed_bytes_ = 0;
    metadata::block_below* below_ = nullptr;  // in private pages
    std::size_t below_count_ = 0;
    std::size_t below_room_ = 0;
};

}  // namespace pmr_debug::detail
