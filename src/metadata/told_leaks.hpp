#pragma once

// Which live blocks of a resource were listed as leaks by a resource that stands on it, floor 1. The upper resource is
// usually destroyed first, so what it listed is kept with the lower one.

#include <pmr_debug/stack_trace.hpp>

#include <cstddef>
#include <cstdint>

namespace pmr_debug::metadata {

/// A set of blocks, by serial number and trace: an address alone may be another block's by now, and a serial number
/// too, where slots are used again. One hash table in private pages, doubled when half full.
///
/// Thread safety: one thread at a time.
class told_leaks {
public:
    /// Blocks that are kept. Those beyond are forgotten, and so listed once more.
    static constexpr std::size_t most = std::size_t{1} << 19;

    told_leaks() = default;
    told_leaks(const told_leaks&) = delete;
    told_leaks& operator=(const told_leaks&) = delete;
    ~told_leaks() { clear(); }

    /// Effects: notes that the resource with the id \p teller has listed the block. Nothing if \p serial is 0, or if
    ///   there is no memory.
    void add(std::uint64_t serial, trace_id allocated, std::uint64_t teller) noexcept;

    /// Returns: the id of the resource that has listed the block, 0 if none has.
    [[nodiscard]] std::uint64_t teller(std::uint64_t serial, trace_id allocated) const noexcept;

    /// Effects: holds what \p other does; nothing if there is no memory. Preconditions: it is empty.
    void copy(const told_leaks& other) noexcept;

    /// Effects: holds nothing, gives the memory back.
    void clear() noexcept;

    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    struct entry {
        std::uint64_t serial = 0;  // 0: free
        std::uint64_t teller = 0;
        trace_id allocated = trace_id::none;
    };

    [[nodiscard]] static entry* make(std::size_t capacity) noexcept;
    [[nodiscard]] entry* find(std::uint64_t serial) const noexcept;
    bool grow() noexcept;

    entry* entries_ = nullptr;
    std::size_t capacity_ = 0;  // a power of two
    std::size_t size_ = 0;
};

}  // namespace pmr_debug::metadata
