// A plug-in, named by the first argument, makes an error in a thread that its constructor waits for. The second one
// says how it is told: by text, as JSON, or as a fault.
#include <pmr_debug/fault_handler.hpp>
#include <pmr_debug/pmr_debug.hpp>

#include <dlfcn.h>

#include <cstring>

namespace {

struct faulty : std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void*, std::size_t, std::size_t) override { *static_cast<volatile int*>(nowhere) = 1; }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
    void* volatile nowhere = nullptr;
};

}  // namespace

int main(int, char** argv) {
    pmr_debug::fault_handler faults;
    pmr_debug::json_handler json(2, pmr_debug::action::abort);
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    faulty other;
    if (std::strcmp(argv[2], "json") == 0) {
        pmr_debug::set_default_report_handler(&json);
    }
    std::pmr::set_default_resource(std::strcmp(argv[2], "fault") == 0 ? static_cast<std::pmr::memory_resource*>(&other)
                                                                      : &heap);
    ::dlopen(argv[1], RTLD_NOW);
}
