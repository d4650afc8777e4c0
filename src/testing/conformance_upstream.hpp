#pragma once

// The upstream below a resource that is examined, floor 5.

#include "testing/conformance_findings.hpp"

#include <cstddef>
#include <map>
#include <memory_resource>
#include <mutex>

namespace pmr_debug::testing::detail {

/// Keeps the accounts of who sits on top, fills what it gets back, and looks at the end whether the fill is still
/// there. A block that came back is kept until the end, so that no address comes twice. Thread-safe.
class recording_upstream final : public std::pmr::memory_resource {
public:
    explicit recording_upstream(conformance_findings& out) : out_(out) {}
    recording_upstream(const recording_upstream&) = delete;
    recording_upstream& operator=(const recording_upstream&) = delete;
    /// Effects: adds what was not given back, and what was written to later.
    ~recording_upstream() override;

    /// Effects: after \p calls more of them, \p how_many calls end in std::bad_alloc.
    void refuse_after(std::size_t calls, std::size_t how_many);
    /// Returns: whether a call was refused.
    [[nodiscard]] bool refused() const;

private:
    struct block {
        std::size_t bytes;
        std::size_t alignment;
        bool live;
    };

    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    conformance_findings& out_;
    mutable std::mutex lock_;
    std::map<std::byte*, block> blocks_;
    std::size_t until_refusal_ = 0;
    std::size_t refusals_left_ = 0;
    bool refused_ = false;
};

}  // namespace pmr_debug::testing::detail
