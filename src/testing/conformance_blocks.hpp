#pragma once

// The blocks that one user of an examined resource holds, floor 5.

#include "testing/conformance_findings.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <vector>

namespace pmr_debug::testing::detail {

/// Takes blocks from a resource and fills each with contents of its own, which are looked at when it is freed. Adds
/// whatever is wrong with a block. One thread at a time.
class held_blocks {
public:
    held_blocks(std::pmr::memory_resource& r, const conformance_options& o, std::uint64_t user,
                conformance_findings& out) noexcept
        : r_(r), options_(o), out_(out), next_seed_(mixed(o.seed) ^ mixed(user)) {}
    held_blocks(const held_blocks&) = delete;
    held_blocks& operator=(const held_blocks&) = delete;
    ~held_blocks() { free_all(); }

    /// Returns: false if it was refused, by std::bad_alloc.
    bool try_take(std::size_t bytes, std::size_t alignment);
    /// As try_take, for a request that must be granted, unless the options say otherwise.
    void take(std::size_t bytes, std::size_t alignment);

    [[nodiscard]] std::size_t count() const noexcept { return blocks_.size(); }

    void free_one(std::size_t index) { free_one(index, r_); }
    /// Effects: frees through \p by, which is equal to the resource.
    void free_one(std::size_t index, std::pmr::memory_resource& by);
    void free_all();
    void free_all(random_numbers& random);

    /// Effects: adds a finding if a block of this and one of \p other overlap.
    void expect_apart(const held_blocks& other);

private:
    struct block {
        void* p;
        std::size_t bytes;
        std::size_t alignment;
        std::uint64_t seed;
    };

    [[nodiscard]] bool is_apart(std::uintptr_t at, std::size_t bytes) const;

    std::pmr::memory_resource& r_;
    const conformance_options& options_;
    conformance_findings& out_;
    std::vector<block> blocks_;
    std::map<std::uintptr_t, std::size_t> by_address_;  // size in bytes
    std::uint64_t next_seed_;
};

}  // namespace pmr_debug::testing::detail
