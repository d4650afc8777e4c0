#pragma once

// A resource of somebody else's that passes everything on: what this library knows nothing of.

#include <cstddef>
#include <memory_resource>

namespace test_support {

class forwarding_resource : public std::pmr::memory_resource {
public:
    explicit forwarding_resource(std::pmr::memory_resource* upstream) : upstream_(upstream) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return upstream_->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        upstream_->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
    std::pmr::memory_resource* upstream_;
};

}  // namespace test_support
