// A container of the program's own deallocates its first buffer, a null pointer with size 0. That is wrong, and
// harmless: it is told, and the program goes on. With "bytes" the size is 8, which is an error.
#include <pmr_debug/pmr_debug.hpp>

#include <cstddef>
#include <cstdio>
#include <memory_resource>

int main(int argc, char**) {
    const std::size_t bytes = argc > 1 ? 8 : 0;
    void* volatile nothing = nullptr;  // or the compiler warns
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource general;
    pmr_debug::tracking_resource tracking;
    pmr_debug::canary_resource canary;
    pmr_debug::end_of_page_resource fence;
    pmr_debug::temp_resource<> temp;
    pmr_debug::limit_resource limit;
    pmr_debug::failing_resource failing;
    pmr_debug::logging_resource logging;
    pmr_debug::immortal_proxy proxy(std::pmr::new_delete_resource());
    std::pmr::memory_resource* const all[] = {&pages, &general, &tracking, &canary,  &fence,
                                              &temp,  &limit,   &failing,  &logging, proxy.resource()};
    for (std::pmr::memory_resource* const r : all) {
        r->deallocate(nothing, bytes, 1);
    }
    volatile const int times = 3;
    for (int again = 0; again < times; ++again) {  // not unrolled: one call, so one place
        general.deallocate(nothing, bytes);
    }
    std::printf("%zu", std::size(all));
}
